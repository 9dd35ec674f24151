"""Generation: new tokens after prompts, how each is chosen, and how they become text."""
