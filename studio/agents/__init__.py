"""The door for AI agents: tools of the Model Context Protocol, each a few calls of the API by the agent's own key."""
