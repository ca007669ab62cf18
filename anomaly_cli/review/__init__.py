"""Results for a person: overlays, the review page, prototype sheets, evaluation."""
