"""What our own worker programs share: the protocol, the server, and how a batch is computed. It knows no
backend. A worker has no queue and no tokenizer: the service forms batches of ids."""
