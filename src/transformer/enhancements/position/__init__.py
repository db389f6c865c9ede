"""Position: how order enters a stack."""
