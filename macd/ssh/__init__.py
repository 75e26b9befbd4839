"""What runs HERE to reach the hosts: SSH through the jump chain, and sessions with the agent."""
