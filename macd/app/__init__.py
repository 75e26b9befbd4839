"""The application that ships with macd: the team's models, their training and their service."""
