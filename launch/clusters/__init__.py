"""What launchers share: cluster profiles, what is launched and was launched, and efface itself on the nodes."""
