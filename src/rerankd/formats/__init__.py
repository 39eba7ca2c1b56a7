"""Model file formats: GGUF and safetensors, their metadata, weights and tokenizers."""
