"""What goes with the weights of an exported model: `card.write(folder)` puts the model card beside them."""
