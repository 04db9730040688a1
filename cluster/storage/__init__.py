"""What a run leaves on storage: its folder, records, lease and journal, and how it is cleaned up."""
