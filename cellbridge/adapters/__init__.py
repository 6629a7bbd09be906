"""LoRA adapters, one per condition, over a frozen base."""
