"""What hosts of one rollout give each other while they pull."""
