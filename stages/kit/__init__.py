"""What several stages share; a stage never imports another stage."""
