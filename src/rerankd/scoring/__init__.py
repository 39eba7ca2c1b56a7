"""Turn texts into scores: inputs, prompts, truncation, normalization. No I/O."""
