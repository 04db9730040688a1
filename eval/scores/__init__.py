"""From the image table to scores: ERR and its axes, intervals, the leaderboard, chains of requests."""
