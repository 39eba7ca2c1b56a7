"""A child process: start, supervision, end."""
