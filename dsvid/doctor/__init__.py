"""What a machine has for training, and the cure for what it lacks; no torch but in processes of its own."""
