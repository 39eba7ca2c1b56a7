"""What our own worker programs share: server, protocol, job thread. It knows no backend."""
