"""What the policy costs and keeps: six simulated days under the real policy functions."""
