"""What a person looks at: overlays, the review page, prototype sheets, evaluation."""
