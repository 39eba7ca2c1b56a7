"""From texts to scores: inputs, prompts, truncation, normalization. No I/O."""
