"""`burnfuse evaluate`: labelled data in; what was caught, what was missed and what it cost, out."""
