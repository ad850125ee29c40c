"""What the views of app.py are made of: who may, what is taken, what is answered."""
