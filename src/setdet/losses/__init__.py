"""What training minimises: matching and the terms of the loss."""
