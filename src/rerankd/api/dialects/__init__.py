"""One file a dialect: a request body that clients send, and the answer they expect. table.py has them all."""
