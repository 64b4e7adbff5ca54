"""What a language model is asked, by the kind of turns that come of it: YAML, `{captions}` and `{boxes}` filled in."""
