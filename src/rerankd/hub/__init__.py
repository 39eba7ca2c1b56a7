"""Model names, hubs, downloads, and the store on this disk."""
