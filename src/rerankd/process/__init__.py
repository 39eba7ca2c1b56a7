"""Engine processes: start, supervise, restart and stop a child process."""
