"""A server for SavedModels with TF Serving's REST and gRPC APIs."""
