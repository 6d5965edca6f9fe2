"""What is measured and logged while a run trains."""
