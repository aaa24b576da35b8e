"""What a learned model is used for: plain networks to export."""
