"""From a request to token ids, the same in serving and in training: templates, their sandbox,
schemas to grammars."""
