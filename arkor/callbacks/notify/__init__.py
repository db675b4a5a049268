"""The callback `Notify`: sends messages about a run to messengers and webhooks."""
