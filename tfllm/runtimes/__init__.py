"""Everything that opens a model and answers with it: checkpoints, SavedModel, LiteRT, LiteRT-LM."""
