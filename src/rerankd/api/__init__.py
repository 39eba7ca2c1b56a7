"""The HTTP API: dialects, routes, the web page and the FastAPI app."""
