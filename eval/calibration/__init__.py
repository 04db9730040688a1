"""How often a judge is right, measured on images of the unedited base before its verdicts count."""
