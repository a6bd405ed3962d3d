"""The API as the SDK speaks it: requests to bytes, batches to HTTP, results to messages and errors."""
