"""Model classes of transformers by architecture: tensor names, and supported configurations."""
