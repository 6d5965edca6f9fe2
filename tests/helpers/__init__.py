"""What tests of several packages share: tiny models, tokenizers, recipes, the command."""
