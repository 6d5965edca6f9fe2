"""A server for SavedModels that speaks TF Serving's REST and gRPC contract."""
