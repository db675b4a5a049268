"""Loss charts: as SVG for pages, as text for terminals."""
