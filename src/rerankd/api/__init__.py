"""HTTP: dialects, routes and the app."""
