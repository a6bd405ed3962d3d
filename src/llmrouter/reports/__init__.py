"""What people read: status and reports, from what the store knows."""
