"""The model: a GPT as a Flax NNX module, its layers, and attention on each kind of device."""
