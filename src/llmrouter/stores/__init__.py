"""Where requests are kept: adapters of the `Store` port."""
