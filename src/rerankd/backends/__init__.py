"""What runs a model: one folder a backend, the contract they share, and the choice between them."""
