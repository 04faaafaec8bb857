"""What the programs in `experiments/` share: options, gin flags, exit statuses."""
