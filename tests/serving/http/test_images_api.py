"""OpenAI's Images API, as the real client of OpenAI speaks it."""
