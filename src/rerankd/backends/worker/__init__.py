"""The shared parts of rerankd's own worker programs: protocol, HTTP server, and scoring of a batch.

They depend on no backend. A worker has no queue and no tokenizer: the service forms batches of token ids."""
