"""What commands print: tables, lines and listings, on streams that may break."""
