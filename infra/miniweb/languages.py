"""True captions in other languages and scripts, in phrases whose words need not agree with each other."""

import random
from dataclasses import dataclass

from infra.miniweb.scenes import COLOURS, SHAPES, Group, Scene


@dataclass(frozen=True)
class Language:
    """`phrase` takes a shape and a colour that never change their form; `sentences` take the list of phrases."""

    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    phrase: str
    several: str
    """How a phrase tells that there are n."""
    glue: str
    last: str
    sentences: tuple[str, ...]

    def tell(self, scene: Scene, dice: random.Random) -> str:
        groups = dice.sample(scene.groups, k=len(scene.groups))
        phrases = [self._phrase(group) for group in groups]
        listed = phrases[0] if len(phrases) == 1 else self.glue.join(phrases[:-1]) + self.last + phrases[-1]
        return dice.choice(self.sentences).format(listed)

    def _phrase(self, group: Group) -> str:
        shape, colour = self.shapes[SHAPES.index(group.shape)], self.colours[COLOURS.index(group.colour)]
        phrase = self.phrase.format(shape=shape, colour=colour)
        return phrase if group.count == 1 else self.several.format(phrase=phrase, n=group.count)


LANGUAGES: dict[str, Language] = {
    "de": Language(
        ("ein Kreis", "ein Quadrat", "ein Dreieck", "eine Raute", "ein Sechseck", "ein Stern", "ein Kreuz", "ein Herz",
         "eine Mondsichel"),
        ("Rot", "Grün", "Blau", "Gelb", "Orange", "Violett", "Rosa", "Braun", "Grau", "Schwarz", "Weiß"),
        "{shape} in {colour}", "{n}-mal {phrase}", ", ", " und ",
        ("Auf dem Bild: {}.", "Hier sieht man {}", "Zeichnung: {}"),
    ),
    "fr": Language(
        ("un cercle", "un carré", "un triangle", "un losange", "un hexagone", "une étoile", "une croix", "un cœur",
         "un croissant"),
        ("rouge", "vert", "bleu", "jaune", "orange", "violet", "rose", "marron", "gris", "noir", "blanc"),
        "{shape} en {colour}", "{n} fois {phrase}", ", ", " et ",
        ("Sur cette image, on voit {}.", "Dessin avec {}", "Voici {}."),
    ),
    "es": Language(
        ("un círculo", "un cuadrado", "un triángulo", "un rombo", "un hexágono", "una estrella", "una cruz",
         "un corazón", "una luna creciente"),
        ("rojo", "verde", "azul", "amarillo", "naranja", "morado", "rosa", "marrón", "gris", "negro", "blanco"),
        "{shape} de color {colour}", "{n} veces {phrase}", ", ", " y ",
        ("En la imagen se ve {}.", "Dibujo con {}", "Aquí aparece {}."),
    ),
    "it": Language(
        ("un cerchio", "un quadrato", "un triangolo", "un rombo", "un esagono", "una stella", "una croce", "un cuore",
         "una mezzaluna"),
        ("rosso", "verde", "blu", "giallo", "arancione", "viola", "rosa", "marrone", "grigio", "nero", "bianco"),
        "{shape} di colore {colour}", "{n} volte {phrase}", ", ", " e ",
        ("Nell'immagine si vede {}.", "Disegno con {}", "Ecco {}"),
    ),
    "pt": Language(
        ("um círculo", "um quadrado", "um triângulo", "um losango", "um hexágono", "uma estrela", "uma cruz",
         "um coração", "uma lua crescente"),
        ("vermelha", "verde", "azul", "amarela", "laranja", "roxa", "rosa", "marrom", "cinza", "preta", "branca"),
        "{shape} de cor {colour}", "{n} vezes {phrase}", ", ", " e ",
        ("A imagem mostra {}.", "Desenho com {}", "Aqui vemos {}."),
    ),
    "pl": Language(
        ("koło", "kwadrat", "trójkąt", "romb", "sześciokąt", "gwiazda", "krzyż", "serce", "półksiężyc"),
        ("czerwonym", "zielonym", "niebieskim", "żółtym", "pomarańczowym", "fioletowym", "różowym", "brązowym",
         "szarym", "czarnym", "białym"),
        "{shape} w kolorze {colour}", "{n} razy {phrase}", ", ", " i ",
        ("Na obrazku: {}.", "Oto {}", "Rysunek: {}."),
    ),
    "tr": Language(
        ("daire", "kare", "üçgen", "eşkenar dörtgen", "altıgen", "yıldız", "haç", "kalp", "hilal"),
        ("kırmızı", "yeşil", "mavi", "sarı", "turuncu", "mor", "pembe", "kahverengi", "gri", "siyah", "beyaz"),
        "{colour} renkli bir {shape}", "{n} kez {phrase}", ", ", " ve ",
        ("Bu resimde {} görülüyor.", "Resim: {}", "Burada {} var."),
    ),
    "ru": Language(
        ("круг", "квадрат", "треугольник", "ромб", "шестиугольник", "звезда", "крест", "сердце", "полумесяц"),
        ("красного", "зелёного", "синего", "жёлтого", "оранжевого", "фиолетового", "розового", "коричневого", "серого",
         "чёрного", "белого"),
        "{shape} {colour} цвета", "{phrase} ({n} шт.)", ", ", " и ",
        ("На картинке {}.", "Рисунок: {}", "Здесь изображены: {}."),
    ),
    "el": Language(
        ("κύκλος", "τετράγωνο", "τρίγωνο", "ρόμβος", "εξάγωνο", "αστέρι", "σταυρός", "καρδιά", "μισοφέγγαρο"),
        ("κόκκινο", "πράσινο", "μπλε", "κίτρινο", "πορτοκαλί", "μοβ", "ροζ", "καφέ", "γκρι", "μαύρο", "λευκό"),
        "{shape} σε {colour} χρώμα", "{n} φορές {phrase}", ", ", " και ",
        ("Στην εικόνα: {}.", "Σχέδιο με {}", "Εδώ φαίνεται {}."),
    ),
    "ar": Language(
        ("دائرة", "مربع", "مثلث", "معين", "سداسي", "نجمة", "صليب", "قلب", "هلال"),
        ("الأحمر", "الأخضر", "الأزرق", "الأصفر", "البرتقالي", "البنفسجي", "الوردي", "البني", "الرمادي", "الأسود",
         "الأبيض"),
        "{shape} باللون {colour}", "{phrase} ({n})", "، ", " و",
        ("في الصورة {}.", "رسم يظهر {}", "هنا نرى {}."),
    ),
    "hi": Language(
        ("वृत्त", "वर्ग", "त्रिभुज", "समचतुर्भुज", "षट्भुज", "तारा", "क्रॉस", "दिल", "अर्धचंद्र"),
        ("लाल", "हरे", "नीले", "पीले", "नारंगी", "बैंगनी", "गुलाबी", "भूरे", "स्लेटी", "काले", "सफ़ेद"),
        "{colour} रंग का {shape}", "{phrase} ({n})", ", ", " और ",
        ("इस चित्र में {} है।", "चित्र: {}", "यहाँ {} दिख रहा है।"),
    ),
    "zh": Language(
        ("圆形", "正方形", "三角形", "菱形", "六边形", "星形", "十字", "心形", "月牙"),
        ("红色", "绿色", "蓝色", "黄色", "橙色", "紫色", "粉色", "棕色", "灰色", "黑色", "白色"),
        "{colour}的{shape}", "{n}个{phrase}", "、", "和",
        ("图中有{}。", "这张图片显示{}", "画着{}。"),
    ),
    "ja": Language(
        ("円", "正方形", "三角形", "ひし形", "六角形", "星", "十字", "ハート", "三日月"),
        ("赤色", "緑色", "青色", "黄色", "オレンジ色", "紫色", "ピンク色", "茶色", "灰色", "黒色", "白色"),
        "{colour}の{shape}", "{n}つの{phrase}", "、", "と",
        ("画像には{}があります。", "{}の絵", "ここに{}が見えます。"),
    ),
    "ko": Language(
        ("원", "정사각형", "삼각형", "마름모", "육각형", "별", "십자가", "하트", "초승달"),
        ("빨간색", "초록색", "파란색", "노란색", "주황색", "보라색", "분홍색", "갈색", "회색", "검은색", "흰색"),
        "{colour} {shape}", "{phrase} {n}개", ", ", " 그리고 ",
        ("그림에는 {} 모양이 있습니다.", "{} 그림", "여기에 {} 모양이 보입니다."),
    ),
}  # fmt: skip


def tell(scene: Scene, dice: random.Random) -> tuple[str, str]:
    """The language's code and a true caption in it."""
    code = dice.choice(sorted(LANGUAGES))
    return code, LANGUAGES[code].tell(scene, dice)
