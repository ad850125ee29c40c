"""How requests reach the application: gunicorn's worker, and who gets a thread when."""
