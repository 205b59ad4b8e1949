"""What is measured side by side: each contender is a function that makes ready and returns a Trial."""
